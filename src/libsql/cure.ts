const LOCKED = /^SQLITE_(BUSY|LOCKED)/

/** What a person can do about a file that cannot be used, by SQLite's extended code (pure). */
const CURES: ReadonlyArray<readonly [codes: RegExp, cure: string]> = [
  [/^SQLITE_READONLY_DBMOVED/, "it is opened anew"],
  [/^SQLITE_FULL/, "free space on its disk; everything goes on by itself"],
  [
    /^SQLITE_(READONLY|CANTOPEN|PERM|AUTH)/,
    "let this process's user write the file, what lies beside it and its folder; everything goes on by itself",
  ],
  [/^SQLITE_(CORRUPT|NOTADB)/, "the file is damaged: see README, A damaged file"],
  [/^SQLITE_IOERR/, "see to the disk and its free space, and to what the system's log says of it"],
  [LOCKED, "a program has a transaction open that writes; everything goes on when it commits, rolls back or ends"],
]

/** null: nothing is wrong with the file. */
export const cureOf = (code: string): string | null => CURES.find(([codes]) => codes.test(code))?.[1] ?? null

/** A lock of another program passes by itself. */
export const isLocked = (code: string): boolean => LOCKED.test(code)
