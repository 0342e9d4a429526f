"""What autograd carries: relevance itself (``reference``), or relevance as a coefficient of the activation (``coefficient``)."""
