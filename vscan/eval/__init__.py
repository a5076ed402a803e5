"""Question files in, answers out. Importable without torch."""
