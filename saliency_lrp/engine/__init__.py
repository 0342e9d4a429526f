"""What stands between a model and its map: what goes in, where relevance starts, where it ends."""
