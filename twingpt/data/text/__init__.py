"""From raw files of any form to cleaned documents."""
