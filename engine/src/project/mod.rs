//! Every run with its recipe, metrics and files, kept on disk; the project file. Uses `recipe`.
