"""``python -m examples.speech``: the demo."""

from examples.speech.demo import main

if __name__ == "__main__":
    main()
