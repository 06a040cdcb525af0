/** Rows that speak to the hub alone: they stand in the stream, and in no table of the feed (pure). */
import type { FeedTable } from "./entry.ts"

/** Marks are decoded like rows but stand in no table of the feed. */
export const MARKS = "schoolbus.marks"
export const marksTable = {
  id: 0,
  name: MARKS,
  columns: [
    { name: "id", kind: "text" as const, toastable: true, generated: false },
    { name: "at", kind: "text" as const, toastable: false, generated: false },
  ],
  key: [0],
}
/** A row here says that the catalog has changed at this place of the stream. */
export const SCHEMA_CHANGES = "schoolbus.schema_changes"
export const changesTable = {
  id: -1,
  name: SCHEMA_CHANGES,
  columns: ["id", "command", "object", "at"].map((name) => ({
    name,
    kind: name === "id" ? ("bigint" as const) : ("text" as const),
    toastable: name !== "id" && name !== "at",
    generated: false,
  })),
  key: [0],
}
export type Decoded = FeedTable | typeof marksTable | typeof changesTable
export const isSignal = (table: Decoded): table is typeof marksTable | typeof changesTable => table.id <= 0
