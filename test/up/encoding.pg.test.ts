/** Schools write what the database of head office has no characters for. */
import { afterEach, describe, expect, test } from "vitest"
import { type Office, openOffice } from "./office.ts"

let o: Office
afterEach(() => o?.close())

const DDL = "CREATE TABLE people (id text PRIMARY KEY, school_id text, name text, about jsonb, tags text[])"

describe.each([
  ["LATIN1", "Zoë", "€"],
  ["EUC_JP", "日本", "😀"],
] as const)("%s", (encoding, fits, lacking) => {
  test("a value that it lacks is quarantined with its bytes, and the rest of the batch is written", async () => {
    o = await openOffice(DDL, { people: { strategy: "newest_wins" } }, { encoding })
    const a = o.school("a")
    const row = (id: string, name: string, more = {}) =>
      ({ table: "people", op: "insert", key: [id], mine: { id, school_id: "a", name, about: null, tags: null, ...more } }) as const
    const sent = await a.push([
      row("1", fits),
      row("2", `two ${lacking}`),
      row("3", "three", { about: `{"x": "${lacking}"}` }),
      row(lacking, "four"),
      row("5", "five"),
    ])
    expect(sent.exceptions.map(({ id, verdict, reason }) => [id, verdict, reason]).toSorted()).toEqual([
      [2, "quarantined", "type"],
      [3, "quarantined", "type"],
      [4, "quarantined", "unreadable"],
    ])
    expect(await o.sql("SELECT id, name FROM people ORDER BY id")).toEqual([
      { id: "1", name: fits },
      { id: "5", name: "five" },
    ])
    const kept = await o.sql("SELECT detail, change FROM schoolbus.quarantine ORDER BY change_id")
    const point = `U+${lacking.codePointAt(0)?.toString(16).toUpperCase().padStart(4, "0")}`
    expect(kept.map(({ detail }) => detail)).toEqual([0, 1, 2].map(() => expect.stringContaining(`is in ${encoding}, which has no ${point}`)))
    expect(JSON.stringify(kept[0])).toContain(Buffer.from(`two ${lacking}`).toString("hex"))
    expect(JSON.parse(JSON.parse(String(kept[2]?.["change"])) as string)).toMatchObject({ key: [lacking], mine: { name: "four" } })

    // An edit that says it otherwise joins what waits; one that starts from such a value is no conflict for that.
    const mended = await a.push([{ table: "people", op: "update", key: ["2"], base: { id: "2", name: `two ${lacking}` }, mine: { name: "two" } }])
    expect(mended.exceptions).toEqual([])
    expect(await o.sql("SELECT name FROM people WHERE id = '2'")).toEqual([{ name: "two" }])
    const edited = await a.push([{ table: "people", op: "update", key: ["1"], base: { id: "1", name: fits }, mine: { name: lacking } }])
    expect(edited.reason(0)).toBe("type")
    expect(await o.sql("SELECT name FROM people WHERE id = '1'")).toEqual([{ name: fits }])
  })
})
