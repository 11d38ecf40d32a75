"""Local updates by name: what local training minimises; each module is one."""
