/** Rows that meet nothing in the school are written in bulk. That is a shorter way to the same end, whatever the rows are. */
import * as Effect from "effect/Effect"
import { expect, test } from "vitest"
import type { LibsqlFile, Tx } from "../../src/libsql/client.ts"
import type { Wire } from "../../src/model/value.ts"
import { openPulledSchool, type PulledSchool, SCHOOL, type Values } from "../support/pretend-hub.ts"
import { column, table } from "../support/school-file.ts"

const seed = Number(process.env["SCHOOLBUS_SEED"] ?? 1)

const things = table(
  "things",
  [
    ...[column("note"), column("id", "bigint"), column("school_id"), column("code", "int"), column("amount", "numeric"), column("ratio", "float")],
    ...[column("is_open", "bool"), column("photo", "bytea"), column("name", "text", { notNull: true })],
  ],
  { unique: [["code"]], priority: "high" },
)
const pairs = table("pairs", [column("left"), column("photo", "bytea"), column("points", "int")], { key: ["left", "photo"], priority: "high" })
const tags = table("tags", [column("id", "int")], { priority: "low" })
const tables = [things, pairs, tags]

const random = (from: number) => {
  let state = from * 2654435761 + 1
  const below = (n: number): number => {
    state = (Math.imul(state ^ (state >>> 15), 1 | state) + 0x6d2b79f5) | 0
    return (state >>> 0) % n
  }
  const pick = <A>(list: ReadonlyArray<A>): A => list[below(list.length)] as A
  return { below, pick }
}

const TEXTS = ["", "plain", "it's", '"quoted" \\ \n\t', "Zoë – ٣", "👩‍🏫", "1", "a\u0000b", "x".repeat(3_000), null]
const NUMERICS = ["0", "-0.00", "NaN", "Infinity", "12345678901234567890.123456789", "1e400", null]
const FLOATS: ReadonlyArray<Wire> = [0, 1.5, -1e308, 5e-324, 1, "NaN", "Infinity", "-Infinity", null]
const BIGINTS = ["9223372036854775807", "-9223372036854775808", "9007199254740993", "0"]

/** The same changes at head office for every school of a run: `put` and `remove` go to all of them. */
const office = (schools: ReadonlyArray<PulledSchool>, { below, pick }: ReturnType<typeof random>) => {
  const codes = new Map<string, number | null>()
  let lastCode = 0
  const put = (local: string, row: Values): void => {
    for (const s of schools) s.hub.put(local, row)
  }
  const remove = (local: string, ...key: ReadonlyArray<Wire>): void => {
    for (const s of schools) s.hub.remove(local, ...key)
  }
  const keyOf = (n: number): string => (n < BIGINTS.length ? (BIGINTS[n] as string) : String((n * 7919) % 100_003))
  const thing = (id: string, code: number | null, name: string): void => {
    codes.set(id, code)
    put("things", {
      ...{ note: pick(TEXTS), id, school_id: SCHOOL, code, amount: pick(NUMERICS), ratio: pick(FLOATS) },
      ...{ is_open: pick([true, false, null]), photo: pick(["", "00ff", "deadbeef", null]), name },
    })
  }
  const change = (isSwapped: boolean, isBad: boolean): void => {
    const id = keyOf(below(900))
    const kind = below(20)
    if (kind === 0) {
      codes.delete(id)
      remove("things", id)
    } else if (kind === 1 && isSwapped && codes.size > 1) {
      // Two rows exchange what must be unique.
      const [a, b] = [pick([...codes.keys()]), pick([...codes.keys()])]
      const [left, right] = [codes.get(a) ?? null, codes.get(b) ?? null]
      thing(a, right, "swapped")
      if (a !== b) thing(b, left, "swapped")
      else thing(a, left, "swapped")
    } else if (kind === 2) remove("pairs", pick(["a", "b"]), "00")
    else if (kind < 6) put("pairs", { left: pick(["a", "b", "é"]), photo: pick(["", "00", "ff", "0102"]), points: below(5) })
    else if (kind === 6) put("tags", { id: below(50) })
    else thing(id, below(4) === 0 ? null : (codes.get(id) ?? ++lastCode), isBad && below(100) === 0 ? "bad" : pick(["Amina", "Zoë", ""]))
  }
  return { change }
}

const dump = (s: PulledSchool) => ({
  rows: tables.map(({ local, columns, key }) =>
    s.read(
      `SELECT ${columns.map(({ name }) => `typeof("${name}"), quote(CAST("${name}" AS BLOB))`).join(", ")} FROM ${local}
        ORDER BY ${key.map((name) => `"${name}"`).join(", ")}`,
    ),
  ),
  behind: s.read("SELECT tbl, key, row FROM schoolbus_behind ORDER BY tbl, key"),
  cursor: s.read("SELECT epoch, seq FROM schoolbus_state"),
  fired: s.read("SELECT count(*) FROM fired"),
  left: s.read("SELECT count(*) FROM schoolbus_stage UNION ALL SELECT count(*) FROM changes"),
})

/** How often rows were written in bulk, and how often they could not be. */
const watched = (file: LibsqlFile, isAllowed: boolean) => {
  const times = { shown: 0, refused: 0 }
  const show =
    (tx: Tx): Tx["show"] =>
    (...lines) =>
      isAllowed
        ? Effect.tap(tx.show(...lines), (refusal) => Effect.sync(() => (refusal === null ? times.shown++ : times.refused++)))
        : Effect.succeed("not now")
  return { times, file: { ...file, write: (body) => file.write((tx) => body({ ...tx, show: show(tx) })) } satisfies LibsqlFile }
}

for (const isStaged of [false, true]) {
  for (let run = seed; run < seed + 4; run++) {
    const isBad = run % 2 === 0
    test(`in bulk or one by one, the school ends alike (seed ${run}, ${isStaged ? "staged" : "straight"}${isBad ? ", some rows refused" : ""})`, async () => {
      const schools = [await openPulledSchool(tables), await openPulledSchool(tables)] as const
      try {
        const ways = schools.map((s, i) => watched(s.file, i === 0))
        // A program counts how often its rows were written; what is taken back does not count.
        for (const s of schools)
          s.program("CREATE TABLE fired (n); CREATE TRIGGER fire AFTER UPDATE ON pairs BEGIN INSERT INTO fired VALUES (1); END")
        const delivers = await Promise.all(schools.map((s, i) => s.reopen(ways[i]?.file)))
        if (isBad)
          for (const s of schools)
            for (const event of ["INSERT", "UPDATE"])
              s.program(`CREATE TRIGGER no_${event} BEFORE ${event} ON things WHEN NEW.name = 'bad' BEGIN SELECT RAISE(ABORT, 'no such name'); END`)
        const dice = random(run)
        const { change } = office(schools, dice)
        for (let cut = 0; cut < 6; cut++) {
          for (let n = 300 + dice.below(1_200); n > 0; n--) change(cut === 3, isBad && cut > 3)
          for (const [i, s] of schools.entries()) {
            const deliver = delivers[i] as PulledSchool["deliver"]
            for (let isApplied = false; !isApplied; ) {
              const options = isStaged ? { lineRows: 40, pageLines: 3 } : { lineRows: 130 }
              const { header, lines, trailer } = s.hub.page(await s.run(deliver.cursor), await s.run(deliver.staged), options)
              // Heard of while it came in, or another one was that broke off.
              const heard = cut % 3 === 2 ? { ...header } : header
              if (i === 0 && cut % 3 > 0) for (const line of cut % 3 === 2 ? lines.slice(1) : lines) deliver.expect(heard, line)
              isApplied = (await s.run(deliver.page(header, lines, trailer))).applied
            }
          }
          expect(dump(schools[0])).toEqual(dump(schools[1]))
        }
        expect(schools[0].hub.rows("things").length).toBeGreaterThan(300)
        expect(ways[0]?.times.shown).toBeGreaterThan(2)
        expect(ways[1]?.times.shown).toBe(0)
        expect(ways[0]?.times.refused).toBeGreaterThan(0)
      } finally {
        for (const s of schools) await s.close()
      }
    })
  }
}

test("a row that comes twice in one cut ends as it came last, and one that goes at last is gone", async () => {
  const s = await openPulledSchool(tables)
  try {
    for (let id = 0; id < 300; id++) s.hub.put("tags", { id })
    const first = s.hub.page(await s.run(s.deliver.cursor), null)
    for (let id = 0; id < 100; id++) s.hub.remove("tags", id)
    for (let id = 300; id < 400; id++) s.hub.put("tags", { id })
    const second = s.hub.page(await s.run(s.deliver.cursor), null)
    await s.run(s.deliver.page(second.header, [...first.lines, ...second.lines], second.trailer))
    expect(s.read("SELECT min(id), count(*) FROM tags")).toEqual([[100n, 300n]])
  } finally {
    await s.close()
  }
})

test("what was written in bulk before another row was refused is written once in all", async () => {
  const s = await openPulledSchool(tables)
  try {
    for (let points = 0; points < 2; points++) {
      for (let n = 0; n < 300; n++) s.hub.put("pairs", { left: String(n), photo: "", points })
      if (points === 1) s.hub.put("tags", { id: 7 })
      await s.pull()
      s.program(`CREATE TABLE IF NOT EXISTS fired (n); CREATE TRIGGER IF NOT EXISTS fire AFTER UPDATE ON pairs BEGIN INSERT INTO fired VALUES (1); END;
        CREATE TRIGGER IF NOT EXISTS refuse BEFORE INSERT ON tags BEGIN SELECT RAISE(ABORT, 'no tags'); END`)
    }
    expect(s.read("SELECT (SELECT count(*) FROM fired), (SELECT sum(points) FROM pairs), (SELECT count(*) FROM schoolbus_behind)")).toEqual([
      [300n, 300n, 1n],
    ])
  } finally {
    await s.close()
  }
})

test("a long page of which a row is refused is staged, so that no program waits for the lock meanwhile", async () => {
  const s = await openPulledSchool(tables)
  try {
    s.program("CREATE TRIGGER refuse BEFORE INSERT ON tags WHEN NEW.id = 5000 BEGIN SELECT RAISE(ABORT, 'not this one'); END")
    for (let id = 1; id <= 6_000; id++) s.hub.put("tags", { id })
    expect(await s.pull()).toMatchObject({ applied: true, behind: 1, received: { rows: 6_000 } })
    expect(s.read("SELECT count(*), max(id) FROM tags")).toEqual([[5_999n, 6_000n]])
  } finally {
    await s.close()
  }
})
