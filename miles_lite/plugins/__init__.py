"""Plug-ins that were written for miles and slime, in their own signatures: how each is called from here."""
