//! The call path: what the assembler makes and the sinks print.
