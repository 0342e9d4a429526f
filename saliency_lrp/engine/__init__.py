"""What goes in, what autograd carries (``reference``, ``coefficient``), where relevance starts and ends."""
