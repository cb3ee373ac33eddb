"""`python -m maskmine` is the command `maskmine`."""

from maskmine.pipelines.cli.main import main

if __name__ == "__main__":
    main()
