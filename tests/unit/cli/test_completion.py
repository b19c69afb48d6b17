"""What a shell offers, by a real bash that has read the script."""

import subprocess

import pytest

from dist_moe.cli.main import main


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "dist-moe.bash"
    capture = pytest.MonkeyPatch()
    lines = []
    capture.setattr("builtins.print", lambda text, end: lines.append(text))
    with pytest.raises(SystemExit) as caught:
        main(["--print-completion", "bash"])
    capture.undo()
    assert caught.value.code == 0
    path.write_text("".join(lines))
    return path


def offered(script, line):
    """The completions of the last word of a command line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = f'source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _dist_moe; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dist-moe tr", ["train"]),
        ("dist-moe config ", ["init", "show", "diff"]),
        ("dist-moe store c", ["check", "copy"]),
        ("dist-moe train --train.l", ["--train.lr"]),
        ("dist-moe train --config a.yaml --engine f", ["fsdp"]),
        ("dist-moe train --train.mode ", ["route", "update"]),
        ("dist-moe export run --li", ["--link"]),
        ("dist-moe checkpoint ", ["show"]),
        ("dist-moe export ru", []),  # the shell's names of files
        ("dist-moe config show --analysis.to", ["--analysis.tokens", "--analysis.top_k", "--analysis.top_p"]),
    ],
)
def test_bash_offers(script, line, words):
    assert sorted(set(offered(script, line)) - {"-h", "--help"}) == sorted(words)


def test_what_is_not_read_is_not_offered(script):
    assert offered(script, "dist-moe analyze --train.l") == []
    assert offered(script, "dist-moe train --local") == []


def test_zsh_reads_what_is_written_for_bash(script, capsys):
    with pytest.raises(SystemExit):
        main(["--print-completion", "zsh"])
    text = capsys.readouterr().out
    assert text.endswith(script.read_text())
    assert text.startswith("autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n")
