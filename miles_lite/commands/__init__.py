"""The commands of `miles-lite`: each reads its options and composes rooms; nothing else imports them."""
