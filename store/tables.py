"""The tables: runs, what was measured on them, generations, workers. Times are seconds since 1970, UTC."""

from sqlalchemy import BigInteger, ForeignKey, Index, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

RUN_STATUSES = ("queued", "running", "done", "failed", "cancelled")
ERROR_KINDS = ("user", "bug", "killed")


class Table(DeclarativeBase):
    """Named constraints, so that a later migration can change them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Run(Table):
    """One recipe on one model: what was asked, how far it is, how it ended."""

    __tablename__ = "runs"
    __table_args__ = (
        Index(None, "status", "priority", "place"),
        Index(None, "created"),
        Index(None, "version"),
        Index(None, "sweep_id"),
        Index(None, "user", "status"),
    )

    id: Mapped[str] = mapped_column(String(12), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(Text)
    recipe: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    chain: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    broken: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    error_kind: Mapped[str | None] = mapped_column(String(16))
    suggestion: Mapped[str | None] = mapped_column(Text)
    user: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(String(16))
    sweep_id: Mapped[str | None] = mapped_column(String(32))
    priority: Mapped[int]
    # The value of the counter `results` when this run's point last changed.
    version: Mapped[int] = mapped_column(BigInteger)
    # How often the run was asked for, and the number under which it is queued now.
    attempt: Mapped[int]
    ticket: Mapped[int]
    # Lower places of one priority run first; it is the ticket until somebody moves the run.
    place: Mapped[int] = mapped_column(BigInteger)
    created: Mapped[float]
    enqueued: Mapped[float]
    started: Mapped[float | None]
    finished: Mapped[float | None]
    worker: Mapped[str | None] = mapped_column(Text)
    heartbeat: Mapped[float | None]
    cancel_requested: Mapped[bool]
    stage: Mapped[str | None] = mapped_column(Text)
    done: Mapped[int | None] = mapped_column(BigInteger)
    total: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[str | None] = mapped_column(Text)
    fraction: Mapped[float | None]
    eta_seconds: Mapped[float | None]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    tokens_per_second: Mapped[float | None]
    artifact: Mapped[str | None] = mapped_column(Text)
    # JSON: {phase: seconds}, and what compression reports about itself.
    seconds: Mapped[str | None] = mapped_column(Text)
    report: Mapped[str | None] = mapped_column(Text)


class Protocol(Table):
    """How a number was measured; `comparable` is equal for the same windows of the same text."""

    __tablename__ = "protocols"

    digest: Mapped[str] = mapped_column(String(16), primary_key=True)
    comparable: Mapped[str] = mapped_column(String(16))
    stamp: Mapped[str] = mapped_column(Text)


class Measurement(Table):
    """One number of one run."""

    __tablename__ = "measurements"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    metric: Mapped[str] = mapped_column(String(64), primary_key=True)
    protocol: Mapped[str] = mapped_column(ForeignKey("protocols.digest"), primary_key=True)
    text: Mapped[str | None] = mapped_column(Text)
    # Null is "not a number": SQLite has no other way to keep one.
    value: Mapped[float | None]
    stderr: Mapped[float | None]
    n: Mapped[int | None] = mapped_column(BigInteger)
    unit: Mapped[str] = mapped_column(String(32))
    lower_is_better: Mapped[bool | None]
    seconds: Mapped[float | None]


class Series(Table):
    """The numbers behind a measurement, one a window, as a JSON list."""

    __tablename__ = "series"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    protocol: Mapped[str] = mapped_column(ForeignKey("protocols.digest"), primary_key=True)
    numbers: Mapped[str] = mapped_column(Text)


class Layer(Table):
    """What one stage made of one linear."""

    __tablename__ = "layers"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    layer: Mapped[str] = mapped_column(String(200), primary_key=True)
    stage: Mapped[int] = mapped_column(primary_key=True)
    block: Mapped[int | None]
    projection: Mapped[str | None] = mapped_column(Text)
    method: Mapped[str | None] = mapped_column(Text)
    error: Mapped[float | None]
    bits: Mapped[float | None]
    sparsity: Mapped[float | None]
    rank: Mapped[int | None]
    bytes: Mapped[int | None] = mapped_column(BigInteger)
    seconds: Mapped[float | None]


class Log(Table):
    """A line that a run's work printed."""

    __tablename__ = "logs"
    __table_args__ = (Index(None, "run_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    time: Mapped[float]
    line: Mapped[str] = mapped_column(Text)


class Generation(Table):
    """One model's answer to a prompt; a group stands side by side. Without a run it is the dense model."""

    __tablename__ = "generations"
    __table_args__ = (Index(None, "group_id", "position"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    group_id: Mapped[str] = mapped_column(String(32))
    position: Mapped[int]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    model: Mapped[str] = mapped_column(Text)
    user: Mapped[str] = mapped_column(Text)
    prompt: Mapped[str] = mapped_column(Text)
    settings: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(Text)
    # JSON: [[token id, piece of text], ...], once it is finished.
    tokens: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float]
    started: Mapped[float | None]
    finished: Mapped[float | None]
    worker: Mapped[str | None] = mapped_column(Text)
    heartbeat: Mapped[float | None]
    cancel_requested: Mapped[bool]


class Task(Table):
    """A question to a model that is no run: asked twice, it is answered once. Its result is JSON."""

    __tablename__ = "tasks"
    __table_args__ = (Index(None, "status", "created"), Index(None, "kind", "model"))

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    kind: Mapped[str] = mapped_column(String(24))
    model: Mapped[str] = mapped_column(Text)
    arguments: Mapped[str] = mapped_column(Text)
    user: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int]
    stage: Mapped[str | None] = mapped_column(Text)
    done: Mapped[int | None] = mapped_column(BigInteger)
    total: Mapped[int | None] = mapped_column(BigInteger)
    detail: Mapped[str | None] = mapped_column(Text)
    result: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    created: Mapped[float]
    started: Mapped[float | None]
    finished: Mapped[float | None]
    worker: Mapped[str | None] = mapped_column(Text)
    heartbeat: Mapped[float | None]
    cancel_requested: Mapped[bool]


class Story(Table):
    """A walk through views of the app; `views` is a JSON list, each with its caption in Markdown."""

    __tablename__ = "stories"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    summary: Mapped[str] = mapped_column(Text)
    views: Mapped[str] = mapped_column(Text)
    user: Mapped[str] = mapped_column(Text)
    created: Mapped[float]
    changed: Mapped[float]


class Tasting(Table):
    """A blind comparison of answers: `settings` (model, runs, prompts, sampling) is JSON."""

    __tablename__ = "tastings"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    user: Mapped[str] = mapped_column(Text)
    settings: Mapped[str] = mapped_column(Text)
    created: Mapped[float]


class Vote(Table):
    """What one person said of one unlabeled pair of answers: left, right, tie or bad."""

    __tablename__ = "votes"

    tasting_id: Mapped[str] = mapped_column(ForeignKey("tastings.id", ondelete="CASCADE"), primary_key=True)
    voter: Mapped[str] = mapped_column(String(64), primary_key=True)
    pair: Mapped[int] = mapped_column(primary_key=True)
    # The answers as this person saw them: generations, of which the left one may be any of the two.
    left_id: Mapped[str] = mapped_column(String(32))
    right_id: Mapped[str] = mapped_column(String(32))
    choice: Mapped[str] = mapped_column(String(8))
    created: Mapped[float]


class Switch(Table):
    """A state that all processes share, such as a paused queue; `value` is JSON."""

    __tablename__ = "switches"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Worker(Table):
    """A worker process and its last sign of life."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(100), primary_key=True)
    pid: Mapped[int]
    host: Mapped[str] = mapped_column(Text)
    device: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    started: Mapped[float]
    heartbeat: Mapped[float]
    memory_bytes: Mapped[int | None] = mapped_column(BigInteger)


class Counter(Table):
    """`all` grows with every visible write, `results` with those that change a point on a plot, `questions`
    with those to answers, tasks and tastings; `tickets` numbers the queue.
    """

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(16), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)
