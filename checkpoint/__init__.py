"""Where a model comes from, what lies on disk, and what it means. Imports `configs` only."""
