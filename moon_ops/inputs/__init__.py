"""What an encoder reads of an item or a query: the contract and its layout, pictures, and their regions."""
