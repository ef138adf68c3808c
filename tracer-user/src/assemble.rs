//! Joins records to call paths.
