"""How maps are shown: colours, figures, sheets of pictures, slices of volumes."""
