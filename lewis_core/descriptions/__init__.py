"""Speaker text: parsing, generation, words that give away state and location."""
