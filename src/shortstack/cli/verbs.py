"""The verbs, each imported when it is asked for."""

# By verb, in the order of --help: the first line of its docstring, so that listing the verbs imports none of them.
VERBS = {
    "shrink": "Prune, repair, heal and measure a model in one command.",
    "score": "Score every layer by one or more metrics, in one pass over the layers.",
    "plan": "Select the layers to remove, from scores or a model.",
    "prune": "Write the model without some layers, by copying bytes.",
    "verify": "Check that a pruned model is whole and computes what it should.",
    "heal": "Train a pruned checkpoint to get back what it lost.",
    "evaluate": "Measure perplexity, tasks and probes, and compare them with the base model.",
    "profile": "Count parameters, bytes and operations; measure speed and memory, in turns with the base model.",
    "study": "Run a grid of trials, each step once.",
    "report": "Show what a study found, as one page or as tables.",
    "export": "Export a checkpoint to llama.cpp, Ollama or the hub.",
    "list": "List metrics, strategies, methods, recipes, tasks and texts.",
}
HELP = ("--help", "-h")


def listing() -> str:
    verbs = "".join(f"  {name:11}  {summary}\n" for name, summary in VERBS.items())
    return (
        "Usage: shortstack VERB [OPTIONS] ...\n\n"
        "Make a decoder-only language model shorter: score its layers, cut some, heal the cut, measure the result.\n\n"
        f"$ shortstack shrink org/model --drop 25% --data notes.txt -o small\n\n{verbs}\n"
        "`shortstack VERB --help` explains its options, `-h` lists them. --version, --install-completion\n"
    )
