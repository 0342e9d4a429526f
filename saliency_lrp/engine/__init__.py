"""What autograd carries: relevance itself (``reference``), or the coefficient of each activation (``coefficient``)."""
