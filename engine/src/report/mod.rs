//! What a person reads afterwards. Uses `project`.
