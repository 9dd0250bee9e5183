"""The lake: durable, append-only Delta tables and everything that is folded from them.

Write path, bottom up:

- ``lock``, ``scratch`` — what is held, or put aside, while a process lives.
- ``storage`` — bytes on a local disk (written, then forced to it) or in an object store.
- ``file`` — one Parquet file: how it is written, and the statistics Delta keeps of it.
- ``commit`` — the files of a Delta log, and what one commit says.
- ``table`` — one Delta table: durable, fenced commits that stay fast at any number of versions.
- ``log`` — the change log of one table, the truth: dense ``_seq``, exactly-once positions.
- ``record`` — a table of numbered records, of which there are two kinds:
- ``version`` — the versions of one product, and the cut that an ``as of`` means;
- ``ledger`` — what of a source is durable and may be acknowledged.
- ``recovery`` — what a power cut left unreadable is moved aside.
- ``upkeep`` — compaction, archive and vacuum.
- ``layout`` — the format number of everything below one lake root.

Read path, bottom up:

- ``shape``, ``exact`` — the columns and key of a table; texts of values that its types cannot hold.
- ``mask``, ``image``, ``multiset`` — pure functions from log rows to the rows that they leave.
- ``tail`` — the log rows beyond a current table.
- ``current`` — the current table, and when to fold; ``fold`` with ``survey``, ``base``, ``span`` and
  ``spill`` — how.
- ``access`` — the one function that every read of data passes.
- ``read`` — fresh and as-of reads, all changes of a key; ``query`` — SQL.

Importing this package loads nothing; its modules import deltalake, which must not be loaded
before a fork.
"""
