"""Who looks on while a run goes on."""
