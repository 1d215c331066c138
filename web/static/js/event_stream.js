// @ts-check
// Follows an event stream: keeps the cursor, and reports a lost connection.

const OFFLINE_MS = 1500; // a reconnect within this time is not reported

/**
 * @typedef {{
 *   address: string,
 *   cursor: string,
 *   handlers: Record<string, (data: any) => void>,
 *   onConnection: (isLost: boolean) => void,
 *   onClosed: () => void,
 *   Source?: typeof EventSource,
 * }} Options
 */

export class EventStream {
  /**
   * `onClosed` is called when the server ends the stream: a browser does not reconnect after that.
   * `Source` replaces EventSource in tests.
   * @param {Options} options
   */
  constructor({ address, cursor, handlers, onConnection, onClosed, Source = EventSource }) {
    this.cursor = cursor;
    this.address = address;
    this.handlers = handlers;
    this.onConnection = onConnection;
    this.onClosed = onClosed;
    this.Source = Source;
    /** @type {EventSource | null} */
    this.source = null;
  }

  get isOpen() {
    return this.source !== null;
  }

  /** Opens the stream at the cursor, unless it is open. */
  open() {
    if (this.source) return;
    const source = new this.Source(`${this.address}?after=${encodeURIComponent(this.cursor)}`);
    this.source = source;
    for (const [name, handle] of Object.entries(this.handlers)) {
      source.addEventListener(name, (event) => {
        if (source !== this.source) return; // an event of a stream that was closed
        this.cursor = event.lastEventId || this.cursor;
        handle(event.data ? JSON.parse(event.data) : {});
      });
    }
    source.onopen = () => {
      if (source === this.source) this.onConnection(false);
    };
    source.onerror = () => this.#onError(source);
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  /** @param {EventSource} source */
  #onError(source) {
    if (source !== this.source) return;
    if (source.readyState === this.Source.CLOSED) {
      this.close();
      this.onClosed();
      return;
    }
    setTimeout(() => {
      if (source === this.source && source.readyState !== this.Source.OPEN) this.onConnection(true);
    }, OFFLINE_MS);
  }
}
