"""Python code of a model folder's own, run only when the user says so, in another process."""
