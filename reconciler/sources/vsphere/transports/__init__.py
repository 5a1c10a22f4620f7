"""Ways to the bytes of a frozen disk: ``ports`` says what each of them promises, ``choosing`` takes the first that can."""
