// The key with which this tab calls the API, where the operator wants one. It is gone when the tab is closed.

const NAME = "smalti.key";
let kept = load();
let asking = null;

/** The header of requests; nothing without a key. */
export const authorization = () => (kept ? { authorization: `Bearer ${kept}` } : {});

/** Whether this tab has a key, so that others need one, too. */
export const hasKey = () => Boolean(kept);

/**
 * Asks for a key, since a request was refused; all requests that wait share one question.
 * @param used the header of the request that was refused.
 * @return whether to send it again.
 */
export async function askForKey(used) {
  // Another request has asked meanwhile.
  if (used.authorization !== authorization().authorization) return true;
  asking ??= ask(Boolean(used.authorization)).finally(() => (asking = null));
  return asking;
}

function ask(wasWrong) {
  const dialog = document.querySelector("[data-key]");
  const input = dialog.querySelector("input");
  dialog.querySelector("[data-key-wrong]").textContent = wasWrong ? "This key is not valid." : "";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const form = dialog.querySelector("form");
    const end = (given) => {
      form.removeEventListener("submit", submit);
      dialog.removeEventListener("close", close);
      dialog.close();
      resolve(given);
    };
    const close = () => end(false);
    const submit = (event) => {
      event.preventDefault();
      const key = input.value.trim();
      // A header takes no other characters.
      if (!/^[\x21-\x7e]+$/.test(key)) return;
      keep(key);
      end(true);
    };
    form.addEventListener("submit", submit);
    dialog.addEventListener("close", close);
  });
}

function keep(key) {
  kept = key;
  try {
    sessionStorage.setItem(NAME, key);
  } catch {
    // No storage: the key lives as long as the page.
  }
}

function load() {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}
