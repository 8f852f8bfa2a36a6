// The theme's pages under a Content-Security-Policy that allows no inline script and no evaluation of strings.
//
// The theme writes expressions into attributes for Alpine.js. Its build for such policies parses most of them itself; it
// knows neither the page's global functions, nor statements, nor arrow functions. Those few are given or replaced here.

htmx.config.allowEval = false;
htmx.config.includeIndicatorStyles = false; // an inline style; admin.css has them

const remembered = "sidebarDesktopOpen";

// What expressions may use besides their own data. Plain objects: the globals themselves are refused.
const globals = () => ({
  getCurrentTab: () => getCurrentTab(),
  sortRecords: (event) => sortRecords(event),
  moveRecords: (event) => moveRecords(event),
  window: {
    get location() {
      return { pathname: location.pathname, search: location.search, hash: location.hash };
    },
  },
});

// A page's own data: the open tab, and whether the sidebar shows.
const page = (tab) => ({
  activeTab: tab,
  sidebarMobileOpen: false,
  sidebarDesktopOpen: localStorage.getItem(remembered) !== "0",
  init() {
    this.activeTab = (this.activeTab && getCurrentTab()) || this.activeTab;
  },
  toggleSidebar() {
    this.sidebarDesktopOpen = !this.sidebarDesktopOpen;
    localStorage.setItem(remembered, this.sidebarDesktopOpen ? "1" : "0");
  },
});

// [selector, attribute, what to put there]
const replacements = [
  ["[x-on\\:click*='localStorage']", "x-on:click", () => "toggleSidebar()"],
  ["[x-bind\\:style*='changeListWidth']", "x-bind:style", () => "{width: changeListWidth + 'px'}"],
  [
    "#search-input-command",
    "x-on:keydown.enter.prevent",
    (old) => `$event.metaKey || $event.ctrlKey || ${old.slice(old.indexOf("selectItem("))}`,
  ],
];

document.addEventListener("alpine:init", () => {
  Alpine.data("theme", (chosen) => {
    const own = theme(chosen);
    return Object.defineProperties(own, Object.getOwnPropertyDescriptors(globals()));
  });
  for (const component of [searchForm, searchDropdown, searchCommand]) Alpine.data(component.name, component);
  Alpine.data("page", page);

  const tab = /activeTab = getCurrentTab\(\) \|\| '([\w-]*)'/.exec(document.body.getAttribute("x-init") ?? "");
  document.body.removeAttribute("x-init");
  document.body.setAttribute("x-data", `page('${tab ? tab[1] : ""}')`);
  for (const [selector, attribute, replacement] of replacements) {
    for (const element of document.querySelectorAll(selector)) {
      element.setAttribute(attribute, replacement(element.getAttribute(attribute)));
    }
  }
});
