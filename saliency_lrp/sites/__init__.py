"""What a call of a torch function is to a rule: the call, what is known of its tensors, and the site it becomes."""
