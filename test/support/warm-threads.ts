/**
 * For tests that open files by the hundred: the thread of a closed file serves the next one that is opened, for a thread that
 * starts anew compiles the driver and its own code each time, which takes longer than what is done with the file. Nothing of
 * a file outlives its connection, and that ends as in the product.
 */
import type { Request, Requests, Responses } from "../../src/libsql/messages.ts"

const Thread = globalThis.Worker
/** The last one that became free is the warmest. */
const free: Array<Worker> = []

/** What `libsql/client.ts` uses of a worker. */
class WarmThread {
  readonly #thread: Worker
  #endId = 0
  #isFree = false
  onmessage: (event: MessageEvent<Responses>) => void = () => undefined
  onerror: (event: ErrorEvent) => void = () => undefined

  constructor(url: URL, options: WorkerOptions) {
    this.#thread = free.pop() ?? new Thread(url, options)
    this.#thread.onmessage = (event: MessageEvent<Responses>) => {
      this.#isFree = event.data.some((response) => response.id === this.#endId && "ok" in response)
      this.onmessage(event)
    }
    this.#thread.onerror = (event) => this.onerror(event)
  }

  postMessage(requests: Requests, buffers: Array<ArrayBuffer>): void {
    const sent = requests.map((request): Request => {
      if (request.op !== "close") return request
      this.#endId = request.id
      return { ...request, op: "reset" }
    })
    this.#thread.postMessage(sent, buffers)
  }

  terminate(): void {
    if (this.#isFree) free.push(this.#thread)
    else this.#thread.terminate()
  }
}

/** From here on files of this process share threads. For processes that start no other workers. */
export const keepThreads = (): void => {
  globalThis.Worker = WarmThread as never
}
