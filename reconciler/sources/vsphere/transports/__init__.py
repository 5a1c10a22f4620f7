"""Ways to the bytes of a frozen disk: ``ports`` says what each promises, ``choosing`` takes the first that can."""
