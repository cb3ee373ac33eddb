"""What a person types in a shell: demo, test, bench."""
