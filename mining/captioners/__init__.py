"""Models that write captions: a server that is asked, and what runs here."""
