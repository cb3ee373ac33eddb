"""What the pages of `maskmine serve` and `maskmine review` share: the server, its headers and checks, the style."""
