//! What the forms look like.
