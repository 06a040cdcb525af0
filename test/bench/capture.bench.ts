/**
 * What capture costs a school's programs: the same writes into the same table with our triggers and without them, each in a
 * file of its own, by the same driver in WAL mode with synchronous=FULL, taking turns.
 */
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import Database from "libsql"
import { column, openSchoolFile, table } from "../support/school-file.ts"
import { atMost, bench } from "./frame.ts"

/** Rows of one statement or transaction. */
const TOGETHER = 1_000
const COLUMNS = ["id", "school_id", "student_id", "class_id", "day", "status", "marked_by", "note", "updated_at"]
const attendance = table("attendance", [
  column("id", "bigint"),
  column("school_id", "text", { notNull: true }),
  ...[column("student_id", "bigint"), column("class_id", "int"), column("day"), column("status")],
  ...[column("marked_by"), column("note"), column("updated_at")],
])

const row = (n: number): ReadonlyArray<string | number> => [
  ...[n, "north", n % 1000, n % 30, `2026-01-${10 + (n % 20)}`, n % 3 === 0 ? "late" : "present"],
  ...[`teacher ${n % 40}`, "a note of usual length", "2026-01-01 08:00:00+00"],
]

interface Program {
  readonly bulk: (from: number) => void
  readonly prepared: (from: number) => void
  readonly single: (n: number) => void
  readonly update: (status: string) => void
  readonly close: () => void
}

const openProgram = (path: string): Program => {
  const db = new Database(path, { timeout: 5000 })
  for (const pragma of ["journal_mode=WAL", "synchronous=FULL"]) db.prepare(`PRAGMA ${pragma}`).all()
  const bulk = db.prepare(`INSERT INTO attendance (${COLUMNS}) SELECT ${COLUMNS.map((_, i) => `value->>${i}`)} FROM json_each(?)`)
  const insert = db.prepare(`INSERT INTO attendance (${COLUMNS}) VALUES (${COLUMNS.map(() => "?")})`)
  const update = db.prepare("UPDATE attendance SET status = ?")
  return {
    bulk: (from) => void bulk.run([JSON.stringify(Array.from({ length: TOGETHER }, (_, i) => row(from + i)))]),
    prepared: (from) => {
      db.exec("BEGIN IMMEDIATE")
      for (let i = 0; i < TOGETHER; i++) insert.run([...row(from + i)])
      db.exec("COMMIT")
    },
    single: (n) => void insert.run([...row(n)]),
    update: (status) => void update.run([status]),
    close: () => void db.close(),
  }
}

/** Seconds of each side, which take turns: what disturbs the machine disturbs both. */
const inTurns = (turns: number, captured: Program, plain: Program, act: (program: Program, turn: number) => void) => {
  const spent = { figure: 0, peer: 0 }
  const timed = (side: keyof typeof spent, program: Program, turn: number) => {
    const began = performance.now()
    act(program, turn)
    spent[side] += (performance.now() - began) / 1000
  }
  for (let turn = 0; turn < turns; turn++) {
    timed("figure", captured, turn)
    timed("peer", plain, turn)
  }
  return spent
}

export default bench({
  name: "capture",
  about: "a school program's writes with capture, against the same writes without",
  bars: {
    bulk: { what: "inserts by json_each, 1,000 a statement", unit: "s", want: atMost(2) },
    prepared: { what: "prepared inserts, 1,000 a transaction", unit: "s", want: atMost(2.5) },
    update: { what: "one UPDATE of all rows", unit: "s", want: atMost(8) },
    single: { what: "commits of one row", unit: "s", want: atMost(1.2) },
  },
  run: async function* ({ rounds, size, say }) {
    for (let round = 0; round < rounds; round++) {
      const folder = mkdtempSync(join(tmpdir(), "schoolbus-plain-"))
      const school = await openSchoolFile([attendance])
      const [[sql] = []] = school.read("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'attendance'")
      const own = new Database(join(folder, "plain.db"))
      own.exec(String(sql))
      own.close()
      const captured = openProgram(school.path)
      const plain = openProgram(join(folder, "plain.db"))
      try {
        const blocks = size(50, 10)
        const warm = 1_000_000_000
        for (const program of [captured, plain]) program.bulk(warm)
        const tell = (what: string, { figure, peer }: { figure: number; peer: number }) => say(`${what}: ${(figure / peer).toFixed(2)} x`)
        const bulk = inTurns(blocks, captured, plain, (program, turn) => program.bulk(turn * TOGETHER))
        tell("bulk", bulk)
        yield { bar: "bulk", ...bulk }
        const prepared = inTurns(blocks, captured, plain, (program, turn) => program.prepared((blocks + turn) * TOGETHER))
        tell("prepared", prepared)
        yield { bar: "prepared", ...prepared }
        const single = inTurns(size(2_000, 500), captured, plain, (program, turn) => program.single(2_000_000_000 + turn))
        tell("single", single)
        yield { bar: "single", ...single }
        const update = inTurns(2, captured, plain, (program, turn) => program.update(`as of ${turn}`))
        tell("update", update)
        yield { bar: "update", ...update }
      } finally {
        captured.close()
        plain.close()
        await school.close()
        rmSync(folder, { recursive: true, force: true })
      }
    }
  },
})
