//! Where finished paths go.
