"""What all pages on this machine share: who may see them, how they are served, their colours."""
