"""Options: small frozen groups, their flags, and the rules between them."""
