"""The user's model: what is inside its wrappers, where it is, and how it is left as it was found."""
