"""What is known of the user's model, asked of it once: device, dtype, preprocessing, names, what it answered."""
