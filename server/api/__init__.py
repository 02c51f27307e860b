"""The REST doors of API.md, one noun per file. Bodies are checked here; what they mean is decided behind."""
