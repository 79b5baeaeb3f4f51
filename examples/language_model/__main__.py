"""``python -m examples.language_model``: the demo."""

from examples.language_model.demo import main

if __name__ == "__main__":
    main()
