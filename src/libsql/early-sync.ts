/**
 * The pages of a large transaction go to the disk while it runs, so that its commit, which waits for the disk, waits for little.
 * Nothing depends on it: what is durable, SQLite's own sync says.
 */
import { open } from "node:fs/promises"

/** What a transaction writes between two times. */
const EVERY_BYTES = 16 * 1024 * 1024

export class EarlySync {
  readonly #file: string
  #bytes = 0
  #isUnderWay = false

  constructor(database: string) {
    this.#file = `${database}-wal`
  }

  /** So much more was handed to the transaction; a sync that it begins, which never fails. */
  wrote(bytes: number): Promise<void> | null {
    this.#bytes += bytes
    if (this.#bytes < EVERY_BYTES || this.#isUnderWay) return null
    this.#bytes = 0
    this.#isUnderWay = true
    return this.#sync()
  }

  async #sync(): Promise<void> {
    try {
      const file = await open(this.#file)
      await file.datasync().finally(() => file.close())
    } catch {
      // The commit waits for all of it then.
    } finally {
      this.#isUnderWay = false
    }
  }

  /** The transaction has ended. */
  ended(): void {
    this.#bytes = 0
  }
}
