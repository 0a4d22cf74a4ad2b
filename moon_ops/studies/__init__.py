"""Research on what is built: what each part is worth. Nothing that promotes, serves or publishes imports it."""
