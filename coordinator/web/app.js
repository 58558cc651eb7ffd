/** The page: two views as tabs, both beside each other where there is room. Read next: chat.js, cluster.js. */
import { startChat } from './chat.js';
import { watchCluster } from './cluster.js';

const tabs = [...document.querySelectorAll('[role=tab]')];
let hasTemplate = true;

function select(tab) {
  for (const other of tabs) {
    const isSelected = other === tab;
    other.setAttribute('aria-selected', String(isSelected));
    other.tabIndex = isSelected ? 0 : -1;
    document.getElementById(other.getAttribute('aria-controls')).hidden = !isSelected;
  }
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener('click', () => select(tab));
  tab.addEventListener('keydown', (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const next = tabs[(i + step + tabs.length) % tabs.length];
    select(next);
    next.focus();
  });
}

select(tabs[0]);
startChat(() => hasTemplate);
await watchCluster((cluster) => {
  hasTemplate = cluster.has_chat_template;
});
