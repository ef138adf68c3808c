//! Where the boxes of the call graph stand.
