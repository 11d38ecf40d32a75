"""What orders of arrival are made of."""
