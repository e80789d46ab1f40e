"""Integrations of tnmpo: layers for torch, compression of Hugging Face models."""

if __name__ != "tnmpo.integrations":
    raise ImportError(
        f"this package was imported as {__name__!r}; import it as 'tnmpo.integrations', "
        "otherwise every class in it would exist twice"
    )
